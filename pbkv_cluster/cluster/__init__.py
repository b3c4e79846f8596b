"""A cluster of Ray actors: what runs where, from start to stop. The only package that imports Ray.

A cluster starts through these files:

    local.py                        `LocalCluster`: starts Redis, Ray and all members, and stops them with its process
    startup/preflight.py            checks all that takes milliseconds before anything is started
    startup/ports.py                the ports that a configuration names, and whether they can be had
    startup/gateway_ports.py        free ports for the gateways where the configuration leaves them open
    startup/stages.py               tells the stages of the start, with their times
    startup/interrupts.py           SIGTERM as Ctrl-C, also while the cluster stops
    startup/state_dir.py            folder for a member's state, removed even after a kill
    startup/run_record.py           what other commands know of this process, and which clusters run on this machine
    startup/shutdown.py             ends a cluster from another process, and all that is left of it
    startup/process_tree.py         the processes below another one
    startup/private_file.py         files that only their owner may read
    frame/ray_session.py            starts Ray on this machine, or joins a Ray cluster
    frame/lean_ray.py               leaves out Ray's processes that one machine does not need
    frame/ray_nodes.py              the nodes of the Ray cluster, as Ray sees them
    frame/ray_processes.py          whether the Ray that was started here still runs
    frame/actor_group.py            the members as actors: launch, wait until ready, supervise, stop
    startup/acquaintance.py         waits until all members know each other
    startup/tier_sizes.py           tells how large the workers' tiers have become
    frame/supervisor.py             restarts members that end, and tells why they ended and when they are back
    frame/standby.py                the process that takes the place of the next member that ends
    frame/causes.py                 what Ray says about the end of a process, in words
    frame/ray_messages.py           what Ray would print, in the log instead
    frame/actors.py                 the actor, a thin shell around one member
    frame/member_thread.py          runs a member on an event loop in a thread of its own
    frame/head_thread.py            runs the head's endpoint and the dashboard in the process that started the cluster
    membership/members.py           the members: gateways, predictor, host stores, workers
    membership/member.py            what a member is, and the context that it is made from
    membership/member_base.py       what all members share
    membership/worker_member.py     what all workers share, whoever's engine they run
    membership/redis_connection.py  a member's directory and block index
    membership/blocking_directory.py  the directory for threads that are not asynchronous
    membership/metrics_endpoint.py  serves a member's metrics, and tells the directory where
    membership/head.py              tells Prometheus where all of these are, and how the members do
    membership/announcer.py         renews a member's directory entry
    membership/member_board.py      the directory's entries of all members, up or down
    nodes/node_plan.py              what each node gets: a host store, workers, perhaps a gateway
    nodes/gateway_plan.py           where the gateways run, and their ports
    nodes/vllm_host.py              starts the process of a worker with vLLM's engine
    nodes/node_follower.py          starts members on nodes that join, ends those of nodes that are drained or lost
    nodes/node.py                   one node: its members, and how far its drain is
    nodes/node_requests.py          what operators ask of nodes
    nodes/running_steps.py          whether the workers of a node still have steps
    membership/problems/problem_report.py  tells the directory what does not work at a member that serves
    membership/problems/problem_watch.py   prints what members have told there
"""

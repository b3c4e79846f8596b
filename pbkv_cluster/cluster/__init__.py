"""A cluster of Ray actors: what runs where, from start to stop. The only package that imports Ray.

A cluster starts through these files:

    local.py              `LocalCluster`: starts Redis, Ray and all members, and stops them with its process
    preflight.py          checks all that takes milliseconds before anything is started
    stages.py             tells the stages of the start, with their times
    interrupts.py         SIGTERM as Ctrl-C, also while the cluster stops
    state_dir.py          folder for a member's state, removed even after a kill
    private_file.py       files that only their owner may read
    ray_session.py        starts Ray on this machine, or joins a Ray cluster
    ray_processes.py      whether the Ray that was started here still runs
    actor_group.py        the members as actors: launch, wait until ready, process ids, stop
    acquaintance.py       waits until all members know each other
    member_watch.py       why members end, and when they are back
    ray_messages.py       what Ray says about processes that ended, instead of on the terminal
    actors.py             the actor, a thin shell around one member
    member_thread.py      runs a member on an event loop in a thread of its own
    members.py            the members: gateway, predictor, host stores, workers
    member.py             what a member is, and the context that it is made from
    redis_connection.py   a member's directory and block index
    announcer.py          renews a member's directory entry
    problem_report.py     tells the directory what does not work at a member that serves
    problem_watch.py      prints what members have told there
"""

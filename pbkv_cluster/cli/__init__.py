"""The `pbkv` command. `main` assembles the commands and turns errors into messages and exit codes.

    serving/       commands that start a cluster or talk to a running one: serve, demo, submit, replay, status
    simulation/    commands in virtual time: simulate, tune, calibrate
    prediction/    commands about forecasts: train, predictor eval, predictor explain
    operation/     commands for operators: explain, cache, workflows, agents, node, clusters, attach, down
    doctor/        what keeps a cluster from running well, and the remedy
    top/           a cluster in the terminal, live
    traces/        trace check, trace convert, record, report
    integrations/  sidecar, otel, hints
    config.py      config show, config validate
    page.py        writes docs/commands.md
    prompt.py      the options by which commands take a prompt
    options.py     options that several commands share
    interrupts.py  how commands run that call the cluster, and what ends them
    extras.py      which extra of the installation a missing package belongs to
    completion.py  what a shell completes as the values of options
    targets.py     the files that commands write
    terminal/      how results are printed, and that names which others have chosen are printed, never obeyed

Heavy packages (Ray, torch, gRPC) are imported inside the commands that use them, so that `pbkv --help` answers at once.
"""

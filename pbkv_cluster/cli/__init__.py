"""The `pbkv` command. `main` assembles the commands and turns errors into messages and exit codes.

    serving/       commands that start a cluster or talk to a running one: serve, demo, submit, replay, status, otel, hints
    simulation/    commands in virtual time: simulate, tune, calibrate
    prediction/    commands about forecasts: train, predictor eval, predictor explain
    config.py      config show
    options.py     options that several commands share
    completion.py  what a shell completes as the values of options
    output.py      how results are printed and written

Heavy packages (Ray, torch, gRPC) are imported inside the commands that use them, so that `pbkv --help` answers at once.
"""

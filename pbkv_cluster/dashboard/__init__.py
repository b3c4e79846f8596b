"""Pages on which an operator sees whether the cache earns its memory. Served by the process that runs the cluster.

    member.py        `Dashboard`: puts the parts together, and tells the directory where they serve
    collector.py     asks the cluster once a round, however many look
    scraping/        asks members for their metrics, and reads these
    summary.py       the state of the cluster as the page takes it
    workflows.py     open workflows, agents and cached blocks, through gateway, predictor and workers
    notices.py       what has happened, in words
    columns.py       a moment as a row of numbers
    history.py       the rows of the last hours, in a fixed number of bytes
    history_file.py  these in a file, for the next start
    series.py        from rows to charts, and to the figures of a window of time
    viewers.py       those who look, each with the latest snapshot
    server.py        HTTP: the page, the stream of snapshots, charts, one workflow

The page itself is in `static`: plain HTML, CSS and JavaScript, and uPlot, whose version and licence lie beside it.
"""

"""How a process of the cluster writes its log: one record a line, as text for people or as JSON.

Modules log by the standard library, `logging.getLogger(__name__)`, so that a program that only uses the client keeps its own
format. Fields that belong to a record are given as `extra`, or bound to all records of a call by `fields.bind`:

    log.warning("a step failed: %s", error, extra={"reason": Reason.STEP_FAILED})

Names of fields: `workflow`, `step`, `agent`, `worker`, `reason` (a reason code), `member`. What a prompt or an output says is
never logged, unless `logging.prompts` is set.
"""

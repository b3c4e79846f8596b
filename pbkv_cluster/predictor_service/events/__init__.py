"""Events as they arrive: `validation` refuses malformed ones; `open_workflows` finds duplicates and follows open workflows."""

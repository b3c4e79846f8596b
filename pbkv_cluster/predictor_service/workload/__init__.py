"""Workloads: what is learnt of one (`workload_model`), which there are (`workloads`), and to which one a workflow belongs.

Recognition: `evidence` is what one step tells, `profile` what one workload's workflows look like, `profiles` scores a workflow
against all of them, and `recognizer` decides, as a state machine for each workflow.
"""

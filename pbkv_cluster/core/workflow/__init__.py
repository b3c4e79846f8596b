"""What happens in workflows, as values: events for the predictor and for clients, tool calls, step graphs, access logs, and
steps as they are told to other workers.
"""

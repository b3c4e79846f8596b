"""What has happened in one workflow: its steps so far (`progress`), its place in a declared step graph (`graph_walk`), and both
as the experts read them (`situation`).
"""

"""Whose step a request is: its workflow and its agent, from what the client says, or else from the conversation.

hints.py         what headers and body say
chains.py        hashes of a conversation's beginnings, and names of agents
prefix_table.py  which workflow has had which beginning; bounded
tool_pauses.py   tool calls that workflows wait for; bounded
sessions.py      the workflow and the agent of each request; pauses and ends of workflows
"""

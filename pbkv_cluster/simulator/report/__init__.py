"""Does it pay here? What a cache could save of a trace's prompts, and what policies and sizes of memory make of that.

`sampling` takes as many workflows as there is time for, `potential` runs them with a cache without bounds, `sweep` with bounded
ones, `findings` says in words what came out, `assessment` puts this together, `charts` and `page` show it in a browser.
"""

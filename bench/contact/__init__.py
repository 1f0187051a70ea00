"""The sections of first_contact.py, one a file: `run(tiny, seconds, leave)` returns what is to stand in its JSON.

`said` holds the lines that the summary shows, `failures` a sentence for each thing that is wrong, `rows` the figures.
`leave` takes the same, unfinished. `seconds` is what the section has; it skips what does not fit, and says so.
"""

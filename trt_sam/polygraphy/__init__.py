"""What Polygraphy's command line needs of a SAM decoder: feeds that mean something, and a comparison by masks.

`docs/polygraphy.md` shows the commands.
"""

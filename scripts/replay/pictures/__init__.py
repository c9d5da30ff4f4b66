"""What `replay_load.py --report` draws: a page without a script or a network, and its figures as JSON.

The SVG is our own. Libraries that draw bring a script for the browser, or fixed colours, which a dark page
cannot have, or a hundred megabytes; three kinds of charts need less than an adapter to them.
"""

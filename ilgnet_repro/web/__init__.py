"""What people look at in a browser: a net drawn as a graph."""

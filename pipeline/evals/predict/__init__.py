"""`pipeline predict`: what a pass takes on a GPU, before there is one."""

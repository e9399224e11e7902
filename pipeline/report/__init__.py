"""`pipeline report`: result files to page, tables and figures."""

"""What stands before each HTTP port of `pipeline serve`: bounded connections, a guard, who answers."""

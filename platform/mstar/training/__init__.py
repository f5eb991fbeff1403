"""What every long job shares: its Ray, its tracking, its progress, its exit codes."""

"""Where backups lie: what such a place must do, and those that there are."""

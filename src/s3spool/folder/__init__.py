"""The watched folder, touched safely: open, list, lease, filters, mounts, hard links, removal."""

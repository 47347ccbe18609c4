"""What systemd needs: notifications, units, installation."""

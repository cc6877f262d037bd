"""Where content and ready-made features come from."""

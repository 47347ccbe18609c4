"""Workers send items: small files multiplexed, large ones in parts. Then result, retry list, post-upload action."""

"""The architectures, pure linen modules: one file each, with sizes and logical axes."""

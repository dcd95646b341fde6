"""The subcommands of `trt-sam`, one module each."""

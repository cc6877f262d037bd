"""`mmbench completion`."""

from mmbase.completion import completion_command

completion = completion_command("mmbench")

"""``llava_s2.train`` where accelerate takes CPU processes for devices that FSDP can shard over, as torch does.

accelerate makes a plain DDP run of them; the only thing changed is that it does not.
"""

import sys

from accelerate.state import AcceleratorState, DistributedType

from llava_s2.cli import main

_init = AcceleratorState.__init__


def init(self, *args, fsdp_plugin=None, **kwargs):
    _init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)


AcceleratorState.__init__ = init
sys.exit(main(["train", *sys.argv[1:]]))

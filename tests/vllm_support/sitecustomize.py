"""Let torchvision be imported beside a CPU build of torch.

The package index has torchvision built for CUDA only; its import registers kernels for two operators that the CPU build
of torch does not know, and fails. Declaring the two schemas first is enough. `make test` puts this file into the
environment's site-packages; every Python start runs it, so it only sets a hook and imports nothing heavy.
"""

import importlib.abc
import sys


class _DeclareOperators(importlib.abc.MetaPathFinder):
    """Declare the two operators right before torchvision is imported, then step aside."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        if not torch.cuda.is_available():
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            # a library that is collected takes its definitions along
            sys.modules["torch"]._torchvision_operators = library
        return


sys.meta_path.insert(0, _DeclareOperators())

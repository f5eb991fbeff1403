"""Has torch ask for huge pages for large tensors, where the system gives them on request.

A packed step allocates activations of tens of megabytes anew; in pages of 4 KiB their first touch
is a tenth of its time. Torch reads the setting at its first allocation. Set
THP_MEM_ALLOC_ENABLE=0 to do without.
"""

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

#!/bin/sh
# SPDX-License-Identifier: MIT
# The quick part of the kernel's KVM selftests, for `make check`.
exec "$(dirname "$0")/run.py" --quick

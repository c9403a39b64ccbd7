# SPDX-License-Identifier: MIT
# Sizes that the build itself guards (HP5); tests/api/lean.c has the rest.
CHECKS += tests/lean/check-lean

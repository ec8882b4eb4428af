# SPDX-License-Identifier: Apache-2.0
# docs/masks.md and its pictures are what the masks of today give.
exec "$MASKRING_BUILD/examples/mask_gallery" "$MASKRING_SOURCE" --check

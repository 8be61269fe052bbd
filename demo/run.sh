#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A tour of penstock in a minute: make a real ext4 image, mount it, read it, compare it, unmount it.
# Called by "make demo"; needs no rights beyond what mounting needs, and tidies up however it ends.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
penstock=$PWD/.venv/bin/penstock
PATH=$PATH:/usr/sbin:/sbin

if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
show() {
  printf '$ %s\n' "$*" | sed "s#$penstock#penstock#"
  "$@"
}
# The first lines of what comes in. All of it is read: a reader that leaves early kills the writer
# by SIGPIPE, and with pipefail the demo.
first() { sed -n "1,$1p"; }
fail() {
  printf 'demo: %s\n' "$*" >&2
  exit 1
}

place=$(mktemp -d "${TMPDIR:-/tmp}/penstock-demo.XXXXXX")
image=$place/disk.img
where=$place/mnt
mounted() { grep -qF " $where " /proc/self/mountinfo; }
tidy() {
  if mounted; then
    "$penstock" umount "$where" 2>/dev/null || umount -l "$where" 2>/dev/null || fusermount3 -uz "$where" || true
  fi
  rm -rf --one-file-system "$place"
}
trap tidy EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

command -v mke2fs >/dev/null || fail "mke2fs is not installed (Debian package e2fsprogs), and a demo needs an image"

say "1. An ext4 image, made from a real tree"
source=/usr/share/doc
if [ ! -r "$source" ] || [ "$(find -L "$source" -maxdepth 1 2>/dev/null | wc -l)" -lt 20 ]; then
  source=$place/tree
  mkdir "$source"
  cp -r src docs tests README.md "$source"
fi
kilobytes=$(du -sk --apparent-size "$source" | cut -f1)
inodes=$(find "$source" | wc -l)
size=$((kilobytes * 3 / 2 + inodes * 4 + 65536))
printf '$ mke2fs -t ext4 -d %s disk.img\n' "$source"
touch "$image" # mke2fs then has nothing to say
mke2fs -q -t ext4 -d "$source" -N $((inodes * 2 + 1000)) "$image" "${size}k"
printf '%s files and folders of %s, in an image of %s MiB\n' "$inodes" "$source" $((size / 1024))

say "2. What is in it? No mount, no root"
show "$penstock" info "$image"
show "$penstock" ls "$image" | first 8

say "3. Mount it"
mkdir "$where"
if ! show "$penstock" mount "$image" "$where"; then
  say "This machine does not let you mount. Why:"
  "$penstock" doctor || true
  file=$(cd "$source" && find . -type f -size -4k | sort | first 1)
  say "Reading works all the same, without a mount"
  show "$penstock" cat "$image:/${file#./}" | first 12
  cmp <("$penstock" cat "$image:/${file#./}") "$source/$file" || fail "the file read differs from its source"
  say "Shown: info, ls and cat of an ext4 image; the mount was refused for the reason above."
  exit 0
fi
grep -F " $where " /proc/self/mounts

say "4. Read through the mount"
mapfile -t small < <(cd "$where" && find . -name lost+found -prune -o -type f -size +0 -size -4k -print | sort)
files=()
for file in "${small[@]}"; do
  if grep -Iq . "$where/$file"; then files+=("$file"); fi # text
  [ ${#files[@]} -lt 3 ] || break
done
[ ${#files[@]} -gt 0 ] || fail "the mount shows no files"
show ls -l "$where" | first 8
for file in "${files[@]}"; do
  printf '$ head -3 %s\n' "$where/${file#./}"
  head -3 "$where/$file"
done

say "5. Compare all of it with the tree it came from"
printf '$ diff -r --no-dereference mnt %s\n' "$source"
diff -r --no-dereference --exclude=lost+found "$where" "$source" || fail "the mount differs from its source"
printf 'no difference in %s files and folders\n' "$inodes"

say "6. What the server did"
show "$penstock" stats "$where"

say "7. Unmount"
show "$penstock" umount "$where"
! mounted || fail "still mounted"

say "Shown: an ext4 image mounted, listed, read and compared through a filesystem server in pure Python."

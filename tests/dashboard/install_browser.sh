#!/bin/sh
# Unpacks Debian's Chromium, with what it needs and this machine lacks, into a folder; installs nothing. Debian and Ubuntu only.
set -eu
folder=$1
[ -x "$folder/usr/lib/chromium/chromium" ] && exit 0
mkdir -p "$folder/packages"
packages=$(apt-get install -s -y --no-install-recommends chromium | awk '/^Inst/ { print $2 }')
(cd "$folder/packages" && apt-get download $packages)
for package in "$folder"/packages/*.deb; do dpkg -x "$package" "$folder"; done
rm -r "$folder/packages"

#!/bin/sh
# Real recorded speech for tests and benchmarks: Debian's alsa-utils (48 kHz) and
# asterisk-core-sounds-en-wav (8 kHz), unpacked into .recordings and installed nowhere.
# Where apt is not there, the tests that want them are skipped and say so.
set -u
cd "$(dirname "$0")/.." || exit 1
target=.recordings
packages="alsa-utils asterisk-core-sounds-en-wav"
[ -e "$target/complete" ] && exit 0
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "recordings: no apt here; tests on recorded speech will be skipped"
    exit 0
fi
mkdir -p "$target/deb"
fetch() { (cd "$target/deb" && apt-get download -qq $packages) >"$target/log" 2>&1; }
if ! fetch; then
    [ "$(id -u)" = 0 ] && apt-get update -qq >>"$target/log" 2>&1
    if ! fetch; then
        echo "recordings: apt cannot fetch them (see $target/log); tests on recorded speech will be skipped"
        exit 0
    fi
fi
for deb in "$target"/deb/*.deb; do dpkg-deb -x "$deb" "$target" || exit 1; done
rm -rf "$target/deb"
touch "$target/complete"
echo "recordings: $(find "$target" -name '*.wav' | wc -l) files of recorded speech"

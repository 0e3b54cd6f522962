#!/bin/sh
# Writes locks/*.txt: the exact versions, with hashes, that `make` installs on every Python that CONTRIBUTING.md names.
# Each file holds what the files before it lack. torch.txt is written by hand, and says why.
#
#   sh locks/make.sh UV     UV: the program uv
set -eu
uv=$1
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

# Oldest Python first: a version that the oldest one cannot take gets a marker, and the others the newer version.
resolve() {
    "$uv" pip compile pyproject.toml "$@" --universal --python-version 3.11 --upgrade --quiet --no-annotate --no-header
}

# The names in requirement files, each as an option that leaves the name out of what uv writes.
without() {
    sed -n 's/^\([a-z0-9][a-z0-9._-]*\)==.*/--no-emit-package \1/p' "$@" | sort -u
}

resolve locks/build.in --extra fuzz --constraint locks/torch.txt --output-file "$work/all.txt"

# What only the CUDA build of torch needs is pinned by torch itself, and not installed with the CPU build.
grep -E '^(torch|triton|nvidia-[a-z0-9-]*|cuda-[a-z0-9-]*)==' "$work/all.txt" >"$work/known.txt"

for extra in demo recipes test fuzz; do
    build=$([ $extra = demo ] && echo locks/build.in || true)
    # shellcheck disable=SC2046,SC2086
    resolve $build --extra $extra --constraint "$work/all.txt" --generate-hashes $(without "$work/known.txt") \
        --output-file "$work/$extra.txt"
    cat "$work/$extra.txt" >>"$work/known.txt"
    {
        echo "# Made by \`make lock\`. Do not edit."
        cat "$work/$extra.txt"
    } >"locks/$extra.txt"
done

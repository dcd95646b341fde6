#!/usr/bin/env bash
# Placeholder until the GPU fixtures land.
set -eu

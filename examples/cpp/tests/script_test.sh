#!/bin/sh
set -eu
app/hello | grep -q 'hello from a remote build'
grep -q 'file 3' gen/forest_list.txt

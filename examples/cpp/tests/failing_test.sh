#!/bin/sh
echo "this test fails, as it should"
exit 3

#!/bin/sh
echo "this test waits for something that never comes"
exec sleep 600

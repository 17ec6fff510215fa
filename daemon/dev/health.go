package dev

import (
	"context"
	"errors"
	"io"
	"net/http"
	"syscall"
	"time"
)

// health is what a node's /readyz says, or how it says nothing.
type health int

const (
	healthSilent  health = iota // no answer in time
	healthGone                  // nobody listens there
	healthUnready               // it answers, and wants no traffic
	healthReady
)

func (h health) String() string {
	return [...]string{"silent", "gone", "unready", "ready"}[h]
}

const (
	pollEvery = 500 * time.Millisecond
	pollWait  = 600 * time.Millisecond
)

// watch asks a node for its health, over and over, until ctx ends.
func watch(ctx context.Context, ops string, tell func(health)) {
	transport := &http.Transport{MaxIdleConns: 1, MaxResponseHeaderBytes: 16 << 10}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: pollWait}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		h := probe(ctx, client, ops)
		if ctx.Err() != nil {
			return
		}
		tell(h)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func probe(ctx context.Context, client *http.Client, ops string) health {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ops+"/readyz", nil)
	if err != nil {
		return healthSilent
	}
	resp, err := client.Do(req)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return healthGone
	case err != nil:
		return healthSilent
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
	if resp.StatusCode == http.StatusOK {
		return healthReady
	}
	return healthUnready
}

package cluster

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/time/rate"
)

// bridge writes memberlist's lines to a slog.Logger. They are for those who
// debug gossip; only errors are warnings, and not too many of them: while a node
// is down, each attempt to reach it is an error to memberlist.
type bridge struct {
	log   *slog.Logger
	warns *rate.Limiter
}

func newBridge(l *slog.Logger) *bridge {
	return &bridge{log: l, warns: rate.NewLimiter(rate.Every(10*time.Second), 3)}
}

func (b *bridge) Write(line []byte) (int, error) {
	text := string(bytes.TrimSpace(line))
	level := slog.LevelDebug
	if strings.HasPrefix(text, "[ERR]") && b.warns.Allow() {
		level = slog.LevelWarn
	}
	if _, rest, ok := strings.Cut(text, "memberlist: "); ok {
		text = rest
	}
	b.log.Log(context.Background(), level, "gossip", "line", text)
	return len(line), nil
}

package actioncache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

func TestEverySchedulerReadsWhatAWorkerWrote(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.put("w1", key("", 1), "one")
		for _, s := range all[:3] {
			n.wants(s, key("", 1), "one")
		}
		n.put("s2", key("", 1), "two")
		for _, s := range all[:3] {
			n.wants(s, key("", 1), "two")
		}
		time.Sleep(time.Second)
		holders := 0
		for _, w := range all[3:] {
			if e, found, err := n.nodes[w].o.Journal.Get(key("", 1)); err == nil && found && string(e.Result) == "two" {
				holders++
			}
		}
		if holders != 2 {
			t.Fatalf("%d disks hold the entry", holders)
		}
	})
}

func TestAMissAtASettledOwnerAsksNobody(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.wants("s1", key("", 1), "")
		if c := n.called(pb.Method_METHOD_AC_GET); c != 0 {
			t.Fatalf("%d questions", c)
		}
		n.wants("w1", key("", 1), "") // owns nothing: asks one scheduler
		if c := n.called(pb.Method_METHOD_AC_GET); c != 1 {
			t.Fatalf("%d questions of a worker", c)
		}
	})
}

func TestInstancesAreTenants(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.put("w1", key("a", 1), "of a")
		n.wants("s1", key("a.b.c", 1), "of a")
		n.wants("s1", key("ab", 1), "")
		n.wants("s1", key("", 1), "")
		n.put("w1", key("a.b", 1), "of a.b")
		n.wants("s2", key("a.b.c", 1), "of a.b")
		n.wants("s2", key("a", 1), "of a")
	})
}

func TestASchedulerIsKilled(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.put("w1", key("", 1), "one")
		n.kill(false, "s2") // the others don't know yet
		start := time.Now()
		n.put("w1", key("", 2), "two")
		n.wants("w1", key("", 1), "one")
		n.wants("s3", key("", 2), "two")
		if d := time.Since(start); d > 50*time.Millisecond {
			t.Fatalf("it took %s", d)
		}
		n.start("s2")
		n.wants("s2", key("", 2), "two") // before it has settled: it asks
		time.Sleep(5 * time.Second)
		n.wantSettled("s2", true)
		n.reset()
		n.wants("s2", key("", 1), "one")
		if c := n.called(pb.Method_METHOD_AC_GET); c != 0 {
			t.Fatalf("%d questions by a settled owner", c)
		}
	})
}

func TestASchedulerThatHangsDelaysAPutBy200Milliseconds(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.mu.Lock()
		n.mute["s2"] = true
		n.mu.Unlock()
		start := time.Now()
		n.put("w1", key("", 1), "one")
		if d := time.Since(start); d < putWait || d > putWait+10*time.Millisecond {
			t.Fatalf("it took %s", d)
		}
		n.wants("s1", key("", 1), "one")
		n.wants("s3", key("", 1), "one")
		n.mu.Lock()
		delete(n.mute, "s2")
		n.mu.Unlock()
		time.Sleep(10 * time.Second)
		n.wants("s2", key("", 1), "one") // it got it late
	})
}

func TestAllAgreeAfterASplit(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.put("w1", key("", 0), "before")
		n.split(1, "s3", "w3")
		n.put("w1", key("", 1), "here")
		n.put("w3", key("", 2), "there")
		n.put("w3", key("", 0), "there first")
		time.Sleep(time.Second)
		n.put("s1", key("", 0), "here later")
		time.Sleep(10 * time.Second)
		n.wants("s1", key("", 2), "")
		n.wants("s3", key("", 1), "")
		n.wants("s3", key("", 0), "there first")

		n.split(0, "s3", "w3")
		n.wants("s1", key("", 2), "there") // it isn't sure any more, and asks
		time.Sleep(5 * time.Second)
		for _, s := range all[:3] {
			n.wantSettled(s, true)
			n.wants(s, key("", 0), "here later")
			n.wants(s, key("", 1), "here")
			n.wants(s, key("", 2), "there")
		}
	})
}

func TestWithoutASchedulerAPutFails(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.kill(true, "s1", "s2", "s3")
		if err := n.nodes["w1"].Put(t.Context(), key("", 1), []byte("x")); !errors.Is(err, ErrNoOwner) {
			t.Fatalf("put: %v", err)
		}
		n.wants("w1", key("", 1), "")
	})
}

func TestTheWholeClusterRestartsWarm(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		for i := range 100 {
			n.put(all[i%6], key("", i), fmt.Sprint("result ", i))
		}
		time.Sleep(time.Second)
		n.kill(true, all...)
		time.Sleep(time.Hour)

		n.start(all...)
		time.Sleep(100 * time.Millisecond)
		n.wantSettled("s1", false)
		for i := range 10 {
			n.wants("s1", key("", i), fmt.Sprint("result ", i)) // from the disks
		}
		time.Sleep(5 * time.Second)
		n.reset()
		for _, s := range all[:3] {
			n.wantSettled(s, true)
			for i := range 100 {
				n.wants(s, key("", i), fmt.Sprint("result ", i))
			}
			n.wants(s, key("", 1000), "")
		}
		if c := n.called(pb.Method_METHOD_AC_GET); c != 0 {
			t.Fatalf("%d questions by settled owners", c)
		}
	})
}

func TestARestartWithoutOneDiskFindsEverythingOnTheOthers(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		for i := range 50 {
			n.put("w1", key("", i), fmt.Sprint(i))
		}
		time.Sleep(time.Second)
		n.kill(true, all...)
		n.start("s1", "w1", "w3")
		time.Sleep(5 * time.Second)
		for i := range 50 {
			n.wants("s1", key("", i), fmt.Sprint(i))
		}
	})
}

func TestOwnershipMovesWithTheSchedulers(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.start("s4", "s5", "s6")
		time.Sleep(5 * time.Second)
		for i := range 60 {
			n.put("w1", key("", i), fmt.Sprint(i))
		}
		held := 0
		for _, s := range []string{"s1", "s2", "s3", "s4", "s5", "s6"} {
			held += n.nodes[s].o.Memory.Stats().Entries
			for i := range 60 {
				n.wants(s, key("", i), fmt.Sprint(i))
			}
		}
		if held != 60*Replicas {
			t.Fatalf("%d copies of 60 entries", held)
		}
		// The disks go too, so that only schedulers can tell.
		n.kill(true, "w1", "w2", "w3")
		for _, s := range []string{"s5", "s2", "s4"} {
			n.kill(true, s)
			time.Sleep(5 * time.Second)
		}
		n.reset()
		for _, s := range []string{"s1", "s3", "s6"} {
			for i := range 60 {
				n.wants(s, key("", i), fmt.Sprint(i))
			}
		}
		if c := n.called(pb.Method_METHOD_AC_GET); c != 0 {
			t.Fatalf("%d questions though everyone owns everything", c)
		}
	})
}

func TestAnEvictedEntryIsFoundOnTheDisks(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.put("w1", key("", 1), "old")
		time.Sleep(time.Second)
		for i := range 20 { // 8 MiB of memory
			n.put("w1", key("", 100+i), strings.Repeat("x", 500<<10))
			time.Sleep(100 * time.Millisecond)
		}
		s := n.nodes["s1"]
		if _, found, _ := s.o.Memory.Lookup(key("", 1)); found {
			t.Fatal("it was not evicted")
		}
		n.wantSettled("s1", true)
		n.wants("s1", key("", 1), "old")
	})
}

func TestADiskThatIsAwayGetsItsEntriesLater(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.kill(true, "w2")
		for i := range 30 {
			n.put("w1", key("", i), fmt.Sprint(i))
		}
		time.Sleep(5 * time.Second)
		n.start("w2")
		time.Sleep(10 * time.Second)
		table := n.placement.Table()
		for i := range 30 {
			for _, d := range table.Owners(key("", i).Action.Prefix()) {
				if _, found, err := n.nodes[d.Addr].o.Journal.Get(key("", i)); !found || err != nil {
					t.Fatalf("%s lacks entry %d: %v", d.Addr, i, err)
				}
			}
		}
		n.kill(true, "w2")
		for i := range 30 {
			n.put("w1", key("x", i), fmt.Sprint(i))
		}
		time.Sleep(2 * time.Minute) // it has lost its place
		for i := range 30 {
			for _, w := range []string{"w1", "w3"} {
				if _, found, err := n.nodes[w].o.Journal.Get(key("x", i)); !found || err != nil {
					t.Fatalf("%s lacks entry %d, which it got from w2: %v", w, i, err)
				}
			}
		}
	})
}

func TestAStampFarAheadIsRefused(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		e := Entry{Key: key("", 1), Stamp: time.Now().Add(2 * time.Minute).UnixNano(), Writer: "broken", Result: []byte("x")}
		good := Entry{Key: key("", 2), Stamp: time.Now().UnixNano(), Writer: "w", Result: []byte("y")}
		req := &pb.AcPutRequest{Entries: []*pb.AcEntry{toProto(&e), toProto(&good)}}
		if _, err := n.nodes["s1"].servePut(t.Context(), "", req); !errors.Is(err, ErrAhead) {
			t.Fatalf("put: %v", err)
		}
		n.wants("s1", key("", 1), "")
		n.wants("s1", key("", 2), "y")
	})
}

func TestBadInputIsRefused(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		x := n.nodes["s1"]
		if err := x.Put(t.Context(), Key{}, nil); !errors.Is(err, ErrMalformed) {
			t.Errorf("no key: %v", err)
		}
		if _, err := x.Get(t.Context(), key(strings.Repeat("i", 2000), 1)); !errors.Is(err, ErrMalformed) {
			t.Errorf("a long instance: %v", err)
		}
		if err := x.Put(t.Context(), key("", 1), make([]byte, MaxResult+1)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("a large result: %v", err)
		}
		if _, err := x.serveGet(t.Context(), "", &pb.AcGetRequest{Key: &pb.AcKey{Action: []byte{1, 2}}}); !errors.Is(err, ErrMalformed) {
			t.Errorf("a malformed digest: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := n.nodes["w1"].Get(ctx, key("", 1)); !errors.Is(err, context.Canceled) {
			t.Errorf("a caller that has gone: %v", err)
		}
	})
}

func TestJournalsAreFedInBatches(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		var putting sync.WaitGroup
		for i := range 300 {
			putting.Go(func() { n.put("s1", key("", i), "x") })
		}
		putting.Wait()
		time.Sleep(time.Second)
		if c := n.called(pb.Method_METHOD_AC_APPEND); c > 30 {
			t.Fatalf("%d appends for 300 entries", c)
		}
		x := n.nodes["s1"]
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.queued != 0 || len(x.queues) != 0 {
			t.Fatalf("%d bytes in %d queues at the end", x.queued, len(x.queues))
		}
	})
}

func TestAStoppedSchedulerListsAgain(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		s := &settler{c: n.nodes["s1"].Client, sources: make(map[string]*source), results: make(chan result, maxListing)}
		s.step(t.Context())
		for ; s.busy > 0; s.busy-- {
			<-s.results
		}
		for _, src := range s.sources {
			src.passes, src.busy = passes, false
		}
		time.Sleep(lookEvery)
		if s.step(t.Context()); s.busy != 0 {
			t.Fatalf("%d lists are under way on an ordinary day", s.busy)
		}
		time.Sleep(time.Minute) // as if it had not run
		if s.step(t.Context()); s.busy == 0 {
			t.Fatal("it takes itself for settled after a minute's stop")
		}
		for ; s.busy > 0; s.busy-- {
			<-s.results
		}
	})
}

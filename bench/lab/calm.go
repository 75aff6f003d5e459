package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	burners    = 4
	fsyncBytes = 64 << 10 // of the competing load, each
	calmSettle = 30 * time.Second
)

// calm counts false alarms: what a lab takes for a failure while nothing fails, and
// the computer is busy with four processes that only reckon and one that has the disk
// write all the time. It prints how many there were of each kind.
func (b bench) calm(length time.Duration) error {
	if _, err := b.start(); err != nil {
		return err
	}
	<-time.After(calmSettle)
	begun := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), length)
	defer cancel()
	busy, err := b.makeBusy(ctx)
	if err != nil {
		return err
	}
	<-ctx.Done()
	writes := busy()
	alarms, err := b.alarms(begun)
	if err != nil {
		return err
	}
	fmt.Printf("%d servers for %v beside %d burners and %.0f fsyncs/s:\n\n| false alarm | times |\n|---|---|\n", b.servers, length, burners, float64(writes)/length.Seconds())
	for _, kind := range []string{"etcd", "vip", "scheduler", "controller-manager", "node not ready", "backend ejected"} {
		fmt.Printf("| %s | %d |\n", kind, len(alarms[kind]))
	}
	for _, list := range alarms {
		for _, text := range list {
			fmt.Fprintln(os.Stderr, text)
		}
	}
	return nil
}

// makeBusy loads the computer until ctx ends; wait tells how often the disk has
// written.
func (b bench) makeBusy(ctx context.Context) (wait func() (fsyncs int), err error) {
	for range burners {
		cmd := exec.CommandContext(ctx, "sh", "-c", "while :; do :; done")
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		go func() { _ = cmd.Wait() }() // it is killed
	}
	file, err := os.CreateTemp(filepath.Join(state, "labs", b.name), "calm-")
	if err != nil {
		return nil, err
	}
	var writing sync.WaitGroup
	var n int
	writing.Go(func() {
		runtime.LockOSThread() // it blocks in the kernel
		defer file.Close()
		defer func() { _ = os.Remove(file.Name()) }()
		for block := make([]byte, fsyncBytes); ctx.Err() == nil; n++ {
			_, err := file.WriteAt(block, int64(n%256)*fsyncBytes)
			if err == nil {
				err = file.Sync()
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, "bench:", err)
				return
			}
		}
	})
	return func() int { writing.Wait(); return n }, nil
}

// alarms lists what has changed since begun, by kind.
func (b bench) alarms(begun time.Time) (map[string][]string, error) {
	alarms := map[string][]string{}
	if err := b.changes(begun, alarms); err != nil {
		return nil, err
	}
	var nodes struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Conditions []struct {
					Type, Status       string
					LastTransitionTime time.Time
				}
			}
		}
	}
	if err := b.read(&nodes, "kubectl", "get", "nodes", "-o", "json"); err != nil {
		return nil, err
	}
	for _, n := range nodes.Items {
		for _, c := range n.Status.Conditions {
			if c.Type == "Ready" && (c.Status != "True" || c.LastTransitionTime.After(begun)) {
				alarms["node not ready"] = append(alarms["node not ready"], fmt.Sprintf("node %s: ready %s since %v", n.Metadata.Name, c.Status, c.LastTransitionTime))
			}
		}
	}
	for i := range b.servers {
		name := fmt.Sprintf("cp%d", i+1)
		log, err := os.ReadFile(filepath.Join(state, "labs", b.name, "machines", name, "var/log/kuorum/endpoint.log"))
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(log)) {
			if at, ok := timeOf(line); ok && at.After(begun) && strings.Contains(line, "was=healthy") {
				alarms["backend ejected"] = append(alarms["backend ejected"], name+": "+strings.TrimSpace(line))
			}
		}
	}
	return alarms, nil
}

// changes are those of who leads.
func (b bench) changes(begun time.Time, alarms map[string][]string) error {
	var history struct {
		Items []struct {
			At       time.Time
			What     string
			From, To string
			Why      string
		}
	}
	if err := b.read(&history, "leader", "--history", "-o", "json"); err != nil {
		return err
	}
	kinds := []string{"etcd", "vip", "scheduler", "controller-manager"}
	for _, c := range history.Items {
		if c.At.After(begun) && slices.Contains(kinds, c.What) {
			alarms[c.What] = append(alarms[c.What], fmt.Sprintf("%s: from %q to %q at %v: %s", c.What, c.From, c.To, c.At, c.Why))
		}
	}
	return nil
}

// read has a command answer in JSON.
func (b bench) read(into any, args ...string) error {
	out, err := exec.Command("bin/kuorum", append([]string{"-c", b.name}, args...)...).Output()
	if err != nil {
		return fmt.Errorf("kuorum %v: %w", args, err)
	}
	return json.Unmarshal(out, into)
}

// timeOf is when a line of a log was written.
func timeOf(line string) (time.Time, bool) {
	text, found := strings.CutPrefix(line, "time=")
	if !found {
		return time.Time{}, false
	}
	text, _, _ = strings.Cut(text, " ")
	at, err := time.Parse(time.RFC3339, text)
	return at, err == nil
}

package supervise

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"kuorum/internal/host"
)

// The test binary runs itself as the processes that are supervised, and as an
// agent that can be killed. Its first argument then is a role, and not a flag.
const (
	roleChild = "child"
	roleAgent = "agent"
)

func TestMain(m *testing.M) {
	run := map[string]func(args []string) error{roleChild: runChild, roleAgent: runAgent}
	if len(os.Args) < 2 || run[os.Args[1]] == nil {
		m.Run()
		return
	}
	if err := run[os.Args[1]](os.Args[2:]); err != nil {
		panic(err)
	}
}

// runChild is a component: JOURNAL NAME [gate=OTHER] [stubborn]. It writes
// "start NAME", then, once OTHER has started too, "ready NAME", "reload NAME" whenever
// it is told to read its files again, and "stop NAME" when it is told to stop, unless
// it is stubborn.
func runChild(args []string) error {
	journal, name, options := args[0], args[1], args[2:]
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	again := make(chan os.Signal, 10)
	signal.Notify(again, syscall.SIGUSR2)
	if err := note(journal, "start "+name); err != nil {
		return err
	}
	tick := time.NewTicker(5 * time.Millisecond)
	life := time.NewTimer(2 * time.Minute) // Lest a test that crashed leaves it behind.
	for _, option := range options {
		other, ok := strings.CutPrefix(option, "gate=")
		for ok && !journalHas(journal, "start "+other) {
			select {
			case <-tick.C:
			case <-life.C:
				return nil
			}
		}
	}
	if err := note(journal, "ready "+name); err != nil {
		return err
	}
	for {
		select {
		case <-life.C:
			return nil
		case <-again:
			if err := note(journal, "reload "+name); err != nil {
				return err
			}
			continue
		case <-term:
		}
		if !slices.Contains(options, "stubborn") {
			return note(journal, "stop "+name)
		}
	}
}

// runAgent is a supervisor of trio: DIR JOURNAL [die]. With "die" it is killed
// at the worst moment: b runs, and the record of b does not say so yet.
func runAgent(args []string) error {
	s, err := New(args[0], slog.New(slog.NewTextHandler(os.Stderr, nil)), trio(args[1]))
	if err != nil {
		return err
	}
	if len(args) > 2 {
		s.system = deadly{}
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	return s.Run(ctx)
}

// deadly kills its own process as soon as b has been started.
type deadly struct{ linux }

func (d deadly) start(c host.Command) (*child, error) {
	p, err := d.linux.start(c)
	if err == nil && slices.Contains(c.Args, "b") {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	return p, err
}

// component is a Process that runs this test binary.
func component(journal, name string, options ...string) Process {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return Process{
		Name: name,
		Path: self,
		Args: append([]string{roleChild, journal, name}, options...),
		Log:  filepath.Join(filepath.Dir(journal), name+".log"),
		Ready: func(context.Context) error {
			if !journalHas(journal, "ready "+name) {
				return fmt.Errorf("%s is not in the journal", name)
			}
			return nil
		},
	}
}

// trio is a, and b and c that come after it.
func trio(journal string) []Process {
	processes := []Process{component(journal, "a"), component(journal, "b"), component(journal, "c")}
	processes[1].After = []string{"a"}
	processes[2].After = []string{"a"}
	return processes
}

// note appends one line in one write, so that lines of several processes do not mix.
func note(journal, line string) error {
	f, err := os.OpenFile(journal, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(f, line+"\n"); err != nil {
		return err
	}
	return f.Close()
}

func journalHas(journal, line string) bool { return slices.Contains(journalLines(journal), line) }

func journalLines(journal string) []string {
	data, err := os.ReadFile(journal)
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// progress prints the steps of a procedure: on a terminal a line that turns
// into its result, elsewhere one plain line a step when it ends.
type progress struct {
	w     io.Writer
	tty   bool
	marks marks

	stop chan struct{}
	done chan struct{}
}

type marks struct{ ok, failed string }

// newProgress writes to the talk stream; nobody hears it with --quiet.
func (a *app) newProgress() *progress {
	p := &progress{w: a.process.Err, marks: a.marks()}
	if a.quiet {
		p.w = io.Discard
	}
	info, err := a.process.Err.Stat()
	p.tty = err == nil && info.Mode()&os.ModeCharDevice != 0 && a.process.Env("TERM") != "dumb" && !a.quiet
	return p
}

// marks are words where the terminal may not know the glyphs.
func (a *app) marks() marks {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		value := strings.ToLower(a.process.Env(name))
		if value == "" {
			continue
		}
		if strings.Contains(value, "utf-8") || strings.Contains(value, "utf8") {
			return marks{ok: "✓", failed: "✗"}
		}
		break
	}
	return marks{ok: "[ok]", failed: "[failed]"}
}

// Started shows that a step runs.
func (p *progress) Started(name string) {
	if !p.tty {
		return
	}
	p.stop, p.done = make(chan struct{}), make(chan struct{})
	go p.spin(name, p.stop, p.done)
}

func (p *progress) spin(name string, stop, done chan struct{}) {
	defer close(done)
	begin := time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		fmt.Fprintf(p.w, "\r\033[K%c %s (%.0fs)", `|/-\`[i%4], name, time.Since(begin).Seconds())
		select {
		case <-stop:
			fmt.Fprint(p.w, "\r\033[K")
			return
		case <-tick.C:
		}
	}
}

// Done shows that a step has ended well.
func (p *progress) Done(name string, took time.Duration) { p.end(p.marks.ok, name, took) }

// Failed shows that a step has not.
func (p *progress) Failed(name string, took time.Duration) { p.end(p.marks.failed, name, took) }

func (p *progress) end(mark, name string, took time.Duration) {
	if p.tty {
		close(p.stop)
		<-p.done
	}
	fmt.Fprintf(p.w, "%s %s (%.1fs)\n", mark, name, took.Seconds())
}

// note prints a line while a step runs.
func (p *progress) note(format string, args ...any) {
	clear := ""
	if p.tty {
		clear = "\r\033[K"
	}
	fmt.Fprintf(p.w, clear+"  "+format+"\n", args...)
}

package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/cluster"
	"kuorum/internal/lab"
)

type logOptions struct {
	node, component string
	follow          bool
	tail            int
}

func (a *app) logsCommand() *cobra.Command {
	o := logOptions{}
	cmd := &cobra.Command{
		Use:   "logs NODE [COMPONENT]",
		Short: "What the components of a machine say, also while it is off",
		Example: `  kuorum logs cp1              the end of every component's log
  kuorum logs cp1 etcd -f      one of them, as it grows`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: a.completeLogs,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.node = args[0]
			if len(args) == 2 {
				o.component = args[1]
			}
			return a.logs(cmd.Context(), o)
		},
	}
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on as the logs grow")
	cmd.Flags().IntVar(&o.tail, "tail", -1, "lines from the end (default: all of one component, 10 of each)")
	return cmd
}

func (a *app) logs(ctx context.Context, o logOptions) error {
	l, err := a.open()
	if err != nil {
		return err
	}
	if _, ok := l.Spec.Node(o.node); !ok {
		return unknownNode(l, o.node)
	}
	files, err := logFiles(l, o.node)
	if err != nil {
		return err
	}
	if o.component != "" {
		path, ok := files[o.component]
		if !ok {
			return &cluster.Problem{
				What: fmt.Sprintf("machine %s has no log of %q", o.node, o.component),
				Why:  "it has " + strings.Join(sortedKeys(files), ", "), Exit: cluster.ExitUsage,
			}
		}
		files = map[string]string{o.component: path}
	} else if o.tail < 0 {
		o.tail = 10
	}
	t := tailer{out: a.process.Out, offsets: map[string]int64{}, prefix: len(files) > 1}
	for _, name := range sortedKeys(files) {
		if err := t.start(name, files[name], o.tail); err != nil {
			return err
		}
	}
	if !o.follow {
		return nil
	}
	return t.follow(ctx, files)
}

// logFiles are a machine's logs by component; "console" is its init's.
func logFiles(l *lab.Lab, node string) (map[string]string, error) {
	files := map[string]string{"console": l.ConsoleLog(node)}
	paths, err := filepath.Glob(filepath.Join(l.LogDir(node), "*.log"))
	if err != nil {
		return nil, fmt.Errorf("cannot list the logs of %s: %w", node, err)
	}
	for _, path := range paths {
		files[strings.TrimSuffix(filepath.Base(path), ".log")] = path
	}
	return files, nil
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// tailer prints files from some line on and goes on as they grow.
type tailer struct {
	out     io.Writer
	offsets map[string]int64 // by component
	prefix  bool
}

// start prints the last lines of a log, all of them when lines is negative.
func (t *tailer) start(name, path string, lines int) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read the log of %s: %w", name, err)
	}
	t.offsets[name] = int64(len(data))
	return t.write(name, lastLines(data, lines))
}

func lastLines(data []byte, lines int) []byte {
	if lines < 0 {
		return data
	}
	if lines == 0 {
		return nil
	}
	at := len(bytes.TrimSuffix(data, []byte("\n"))) // the last line may be unfinished
	for range lines {
		at = bytes.LastIndexByte(data[:at], '\n')
		if at < 0 {
			return data
		}
	}
	return data[at+1:]
}

func (t *tailer) write(name string, data []byte) error {
	if !t.prefix {
		_, err := t.out.Write(data)
		return err
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, len(data)+1)
	for lines.Scan() {
		if _, err := fmt.Fprintf(t.out, "%-24s %s\n", name, lines.Text()); err != nil {
			return err
		}
	}
	return lines.Err()
}

// follow prints what is added until ctx ends. A file that has become shorter
// was rotated: it is read from its start.
func (t *tailer) follow(ctx context.Context, files map[string]string) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for _, name := range sortedKeys(files) {
			if err := t.grow(name, files[name]); err != nil {
				return err
			}
		}
	}
}

func (t *tailer) grow(name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return nil //nolint:nilerr // it does not exist yet, or no more
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("cannot read the log of %s: %w", name, err)
	}
	if info.Size() < t.offsets[name] {
		t.offsets[name] = 0
	}
	data, err := io.ReadAll(io.NewSectionReader(f, t.offsets[name], info.Size()-t.offsets[name]))
	if err != nil {
		return fmt.Errorf("cannot read the log of %s: %w", name, err)
	}
	t.offsets[name] += int64(len(data))
	return t.write(name, data)
}

func (a *app) completeLogs(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return a.completeNodes(cmd, args, word)
	}
	l, err := a.open()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	files, err := logFiles(l, args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return sortedKeys(files), cobra.ShellCompDirectiveNoFileComp
}

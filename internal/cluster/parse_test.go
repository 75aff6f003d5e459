package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const head = "apiVersion: kuorum.dev/v1alpha1\nkind: Cluster\n"

// located matches the lines of a report that say where: a field by line and
// column, bad syntax by line.
var located = regexp.MustCompile(`^cluster\.yaml:(\d+):(\d+: | not YAML: | the file is empty: )`)

// TestParseRefuses runs every file in testdata/bad. Their first lines say what
// the error must contain.
func TestParseRefuses(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 65 {
		t.Fatalf("only %d files in testdata/bad", len(files))
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			problem := refused(t, data)
			wants := wanted(data)
			if len(wants) == 0 {
				t.Fatal("the file has no line '# want: TEXT'")
			}
			text := problem.What + ":\n" + problem.Why + "\n"
			for _, want := range wants {
				if !strings.Contains(text, want) {
					t.Errorf("the error does not contain\n  %s\nbut is\n%s", want, text)
				}
			}
			inOrder(t, problem)
		})
	}
}

func wanted(data []byte) []string {
	var wants []string
	for line := range strings.Lines(string(data)) {
		want, ok := strings.CutPrefix(line, "# want: ")
		if !ok {
			break
		}
		wants = append(wants, strings.TrimSuffix(want, "\n"))
	}
	return wants
}

// refused parses what must not be accepted and checks the shape of the error.
func refused(t *testing.T, data []byte) *Problem {
	t.Helper()
	spec, err := Parse("cluster.yaml", data)
	problem, ok := errors.AsType[*Problem](err)
	if !ok || spec != nil {
		t.Fatalf("Parse = %v, %v; want only a *Problem", spec, err)
	}
	if problem.ExitCode() != ExitUsage {
		t.Errorf("exit code %d, want %d", problem.ExitCode(), ExitUsage)
	}
	if strings.Contains(problem.What+problem.Error(), "\n") {
		t.Errorf("What and Error must be one line: %q", problem.Error())
	}
	return problem
}

// inOrder checks that all lines name a place, and in the order of the file.
func inOrder(t *testing.T, problem *Problem) {
	t.Helper()
	last := 0
	for line := range strings.SplitSeq(problem.Why, "\n") {
		match := located.FindStringSubmatch(line)
		if match == nil {
			t.Errorf("no file and line in %q", line)
			continue
		}
		n, err := strconv.Atoi(match[1])
		if err != nil || n < last {
			t.Errorf("line %s stands after line %d", match[1], last)
		}
		last = n
	}
}

// TestParseAccepts compares every file in testdata/good with its golden file,
// which is the spec as it is shown with all defaults.
func TestParseAccepts(t *testing.T) {
	files, err := filepath.Glob("testdata/good/*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("files %v, error %v", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(strings.TrimSuffix(file, ".yaml") + ".golden")
			if err != nil {
				t.Fatal(err)
			}
			got := show(t, parsed(t, data))
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("shown differently (-want +got):\n%s", diff)
			}
			roundTrips(t, data)
		})
	}
}

func parsed(t *testing.T, data []byte) *Spec {
	t.Helper()
	spec, err := Parse("cluster.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func show(t *testing.T, spec *Spec) []byte {
	t.Helper()
	out, err := spec.YAML()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// roundTrips checks that a valid file survives being shown and read again.
func roundTrips(t *testing.T, data []byte) {
	t.Helper()
	first := parsed(t, data)
	shown := show(t, first)
	second := parsed(t, shown)
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("changed by a round trip (-before +after):\n%s", diff)
	}
	if again := show(t, second); !bytes.Equal(shown, again) {
		t.Errorf("shown differently the second time:\n%s\n%s", shown, again)
	}
}

func TestParseWithoutContent(t *testing.T) {
	for _, data := range []string{"", "\n\n", "# nothing\n", "---\n", "null\n", "~"} {
		if problem := refused(t, []byte(data)); !strings.Contains(problem.Why, "the file is empty") {
			t.Errorf("%q: %s", data, problem.Why)
		}
	}
}

func TestParseSize(t *testing.T) {
	fill := func(size int) []byte {
		data := []byte(head + "#")
		return append(data, bytes.Repeat([]byte("x"), size-len(data))...)
	}
	if _, err := Parse("cluster.yaml", fill(maxFile)); err != nil {
		t.Errorf("a file of the largest size: %v", err)
	}
	if problem := refused(t, fill(maxFile+1)); !strings.Contains(problem.Why, "too large: 1048577 bytes") {
		t.Error(problem.Why)
	}
}

// TestParseSectionsWithoutContent allows sections whose lines are all
// commented out.
func TestParseSectionsWithoutContent(t *testing.T) {
	empty := head + "metadata:\nspec:\n  nodes:\n  network:\n  dns:\n    upstream:\n  kubernetes:\n    featureGates: {}\n"
	if diff := cmp.Diff(parsed(t, []byte(head)), parsed(t, []byte(empty))); diff != "" {
		t.Errorf("not like a file without them:\n%s", diff)
	}
}

// TestParseReportIsBounded gives a file that has nothing but mistakes.
func TestParseReportIsBounded(t *testing.T) {
	var file strings.Builder
	file.WriteString(head + "spec:\n")
	for i := range 20_000 {
		fmt.Fprintf(&file, "  wrong%d: 1\n", i)
	}
	file.WriteString("  network: {mtu: 1}\n")
	problem := refused(t, []byte(file.String()))
	if lines := strings.Count(problem.Why, "\n") + 1; lines != maxIssues+1 {
		t.Errorf("%d lines, want %d", lines, maxIssues+1)
	}
	if !strings.HasSuffix(problem.Why, "... and 19951 more") {
		t.Errorf("the end is %q", problem.Why[len(problem.Why)-40:])
	}
	long := head + "spec: {" + strings.Repeat("a", 1000) + ": 1, network: {backend: x" + strings.Repeat("ä", 1000) + "}}"
	if problem := refused(t, []byte(long)); len(problem.Why) > 1000 || strings.Contains(problem.Why, `\x`) {
		t.Errorf("two mistakes in long lines: %s", problem.Why)
	}
}

func TestParseManyNodesIsQuick(t *testing.T) {
	file := head + "spec:\n  nodes: [" + strings.Repeat("{},", 200_000) + "]\n"
	if problem := refused(t, []byte(file)); !strings.Contains(problem.Why, "200000 nodes are too many") {
		t.Error(problem.Why)
	}
}

// TestSyntaxLine breaks each line of a good file in turn and expects the error
// there, whatever comes before or after.
func TestSyntaxLine(t *testing.T) {
	data, err := os.ReadFile("testdata/good/everything.yaml")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(data), "\n")
	for i := range lines {
		broken := strings.Join(slices.Insert(slices.Clone(lines), i, "\t@\n"), "")
		want := fmt.Sprintf("cluster.yaml:%d: not YAML: ", i+1)
		if problem := refused(t, []byte(broken)); !strings.HasPrefix(problem.Why, want) {
			t.Errorf("broken line %d: %s", i+1, problem.Why)
		}
	}
}

func TestClosest(t *testing.T) {
	known := []string{"servers", "mtu", "dns", "pods", "podPrefix"}
	for written, want := range map[string]string{
		"server": "servers", "Servers": "servers", "SERVER": "servers", "podz": "pods", "mut": "", "mtuu": "mtu",
		"podprefix": "podPrefix", "x": "", "": "", "loadbalancer": "", "dn": "dns", "cidr": "",
	} {
		if got := Closest(written, known); got != want {
			t.Errorf("Closest(%q) = %q, want %q", written, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "abc", 0}, {"kitten", "sitting", 3}, {"ab", "ba", 2}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

func TestPaths(t *testing.T) {
	for path, want := range map[string]string{
		child("", "spec"):                                "",
		child("spec", "dns"):                             "spec",
		item("spec.nodes", 12):                           "spec.nodes",
		child(item("spec.nodes", 0), "name"):             "spec.nodes[0]",
		child("spec.nodes[0].labels", `example.com/["x`): "spec.nodes[0].labels",
	} {
		if got := parent(path); got != want {
			t.Errorf("parent(%q) = %q, want %q", path, got, want)
		}
	}
}

// FuzzParse looks for input that panics, that is refused without a reason, or
// that changes when it is shown and read again.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/bad/*.yaml", "testdata/good/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := Parse("cluster.yaml", data); err == nil {
			roundTrips(t, data)
			return
		}
		if problem := refused(t, data); problem.Why == "" {
			t.Error("refused without a reason")
		}
	})
}

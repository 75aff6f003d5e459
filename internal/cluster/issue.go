package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits of what a report repeats of a bad file: a file of nonsense should
// not scroll the useful lines away.
const (
	maxIssues = 50
	maxQuoted = 80 // bytes
)

// position is a place in a file, counted from 1; 0 means "not known".
type position struct{ line, column int }

// issue is one thing wrong with a spec. paths are the fields it is about: the
// first is shown, the others (the range an address is missing from, say) tell
// whether the issue follows from one that is already reported.
type issue struct {
	at    position
	paths []string
	text  string
}

// report makes the Problem of a spec with issues, which stand in the order of
// the file. file may be empty: the spec then comes from code or flags.
func report(what, file string, issues []issue) *Problem {
	slices.SortStableFunc(issues, func(a, b issue) int {
		return cmp.Or(cmp.Compare(a.at.line, b.at.line), cmp.Compare(a.at.column, b.at.column))
	})
	var lines []string
	for _, i := range issues[:min(len(issues), maxIssues)] {
		lines = append(lines, i.in(file))
	}
	if more := len(issues) - maxIssues; more > 0 {
		lines = append(lines, fmt.Sprintf("... and %d more", more))
	}
	problems := "problems"
	if len(issues) == 1 {
		problems = "problem"
	}
	return &Problem{
		What: fmt.Sprintf("%s: %d %s", what, len(issues), problems),
		Why:  strings.Join(lines, "\n"),
		Exit: ExitUsage,
	}
}

// in writes the issue as "FILE:LINE:COLUMN: FIELD: TEXT", without the parts
// that are not known.
func (i issue) in(file string) string {
	var b strings.Builder
	if file != "" {
		b.WriteString(file)
		for _, n := range []int{i.at.line, i.at.column} {
			if n > 0 {
				b.WriteString(":" + strconv.Itoa(n))
			}
		}
		b.WriteString(": ")
	}
	if len(i.paths) > 0 && i.paths[0] != "" {
		b.WriteString(shorten(i.paths[0]) + ": ")
	}
	b.WriteString(i.text)
	return b.String()
}

// child is the path of a mapping's key: "spec.network", or, for keys that
// would be ambiguous or unprintable like that, labels["example.com/rack"].
func child(path, key string) string {
	if key == "" || strings.ContainsFunc(key, notPlain) {
		return path + "[" + strconv.Quote(key) + "]"
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// item is the path of a list's item: "spec.nodes[2]".
func item(path string, index int) string {
	return path + "[" + strconv.Itoa(index) + "]"
}

// parent is the path around path; that of a top-level field is "".
func parent(path string) string {
	// Quoted keys hold anything, but nothing lies below them.
	if before, _, found := strings.Cut(path, `["`); found {
		return before
	}
	return path[:max(0, strings.LastIndexAny(path, ".["))]
}

func notPlain(r rune) bool {
	plain := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_'
	return !plain
}

// quote shows text a user wrote, on one line and not at any length.
func quote(text string) string { return strconv.Quote(shorten(text)) }

func shorten(text string) string {
	if len(text) <= maxQuoted {
		return text
	}
	cut := maxQuoted
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "..."
}

// didYouMean is `, did you mean "X"?` with the known word closest to the one
// written, or nothing when none is close.
func didYouMean(written string, known []string) string {
	if word := Closest(written, known); word != "" {
		return fmt.Sprintf(", did you mean %q?", word)
	}
	return ""
}

// Closest is the known word at the smallest edit distance from the one
// written, whatever the case of letters, or "" when more than two edits or
// half of the word would have to change.
func Closest(written string, known []string) string {
	best, found := 3, ""
	for _, word := range known {
		if abs(len(word)-len(written)) >= best {
			continue
		}
		d := distance(strings.ToLower(written), strings.ToLower(word))
		if d < best && 2*d <= len(word) {
			best, found = d, word
		}
	}
	return found
}

// distance is the number of bytes to insert, delete or replace to make one
// word out of the other (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}

func abs(n int) int { return max(n, -n) }

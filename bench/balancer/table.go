package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// print gives medians of the rounds, and the ratios' extremes.
func (b *bench) print() {
	fmt.Printf("%d rounds of %v, medians; TLS of clients: %v\n\n", b.rounds, b.length, b.tls)
	fmt.Println("| load | through | rate | p50, µs | p99, µs | added p50, µs | added p99, µs | CPU, s |\n|---|---|---|---|---|---|---|---|")
	for _, l := range b.loads() {
		for _, w := range b.ways {
			all := b.seen[key{l.name, w.name}]
			of := func(field func(figures) float64) string { return significant(median(all, field)) }
			added := []string{"", "", ""}
			if w.pid != 0 {
				added = []string{of(addedP50), of(addedP99), of(cpu) + " / " + l.perText}
			}
			fmt.Printf("| %s | %s | %s %s | %s | %s | %s |\n", l.name, w.name, of(rate), l.unit, of(p50), of(p99), strings.Join(added, " | "))
		}
	}
	fmt.Printf("\n| kuorum / HAProxy | rate | p50 | p99 | added p50 | added p99 | CPU |\n|---|---|---|---|---|---|---|\n")
	for _, l := range b.loads() {
		fmt.Printf("| %s |", l.name)
		for _, field := range []func(figures) float64{rate, p50, p99, addedP50, addedP99, cpu} {
			fmt.Printf(" %s |", spread(b.ratios[l.name], field))
		}
		fmt.Println()
	}
	fmt.Println("\nA rate is good above 1, all else below. Without clients (health checks), of one processor:")
	for _, name := range []string{ours, theirs} {
		fmt.Printf("%s %.4f\n", name, middle(b.idle[name]))
	}
}

func rate(f figures) float64     { return f.rate }
func p50(f figures) float64      { return f.p50 }
func p99(f figures) float64      { return f.p99 }
func addedP50(f figures) float64 { return f.addedP50 }
func addedP99(f figures) float64 { return f.addedP99 }
func cpu(f figures) float64      { return f.cpu }

func values(all []figures, field func(figures) float64) (list []float64) {
	for _, f := range all {
		list = append(list, field(f))
	}
	slices.Sort(list)
	return list
}

func median(all []figures, field func(figures) float64) float64 { return middle(values(all, field)) }

func middle(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// spread is the median of ratios, and the least and the greatest.
func spread(all []figures, field func(figures) float64) string {
	list := slices.DeleteFunc(values(all, field), math.IsNaN)
	if len(list) == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f (%.2f to %.2f)", middle(list), list[0], list[len(list)-1])
}

// significant has three digits.
func significant(x float64) string {
	if x == 0 {
		return "0"
	}
	digits := max(0, 2-int(math.Floor(math.Log10(math.Abs(x)))))
	return fmt.Sprintf("%.*f", digits, x)
}

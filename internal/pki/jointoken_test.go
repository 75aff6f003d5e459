package pki

import (
	"regexp"
	"strings"
	"testing"
)

func newTestToken(t testing.TB) Token {
	t.Helper()
	token, err := NewToken()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestToken(t *testing.T) {
	form := regexp.MustCompile(`^[a-z2-7]{10}\.[a-z2-7]{32}$`)
	seen, letters := map[string]bool{}, map[rune]bool{}
	for range 64 {
		token := newTestToken(t)
		if !form.MatchString(token.String()) {
			t.Fatalf("a token is %q", token)
		}
		seen[token.ID], seen[token.Secret] = true, true
		for _, letter := range token.Secret {
			letters[letter] = true
		}
		back, err := ParseToken(" " + token.String() + "\n")
		if err != nil || back != token {
			t.Errorf("%q is read as %q, %v", token, back, err)
		}
	}
	// 2048 draws of 32 letters lack one with a chance below 2^-88.
	if len(seen) != 128 || len(letters) != 32 {
		t.Errorf("%d different IDs and secrets of 128, with %d letters of 32", len(seen), len(letters))
	}
}

func TestParseTokenRefuses(t *testing.T) {
	id, secret := strings.Repeat("a", 10), strings.Repeat("7", 32)
	if _, err := ParseToken(id + "." + secret); err != nil {
		t.Fatalf("a good one: %v", err)
	}
	for name, test := range map[string]struct{ text, want string }{
		"nothing":        {"", "no dot"},
		"no dot":         {id + secret, "no dot"},
		"short ID":       {id[1:] + "." + secret, "ID has 9 characters instead of 10"},
		"no ID":          {"." + secret, "ID has 0"},
		"no secret":      {id + ".", "secret has 0 characters instead of 32"},
		"cut":            {id + "." + secret[1:], "secret has 31"},
		"long":           {id + "." + secret + "7", "secret has 33"},
		"two dots":       {id + "." + secret[2:] + ".7", "secret may have only"},
		"upper case":     {strings.ToUpper(id) + "." + secret, "ID may have only"},
		"digit":          {id + ".1" + secret[1:], "secret may have only"},
		"inside":         {id + "." + secret[:15] + "!" + secret[16:], "secret may have only"},
		"space inside":   {id + " ." + secret[1:], "ID has 11"},
		"other alphabet": {id + "." + secret[2:] + "ö", "secret may have only"},
	} {
		t.Run(name, func(t *testing.T) {
			token, err := ParseToken(test.text)
			if err == nil || !strings.Contains(err.Error(), test.want) || token != (Token{}) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), secret[4:]) {
				t.Errorf("the error shows the secret: %v", err)
			}
		})
	}
}

func TestTokenHash(t *testing.T) {
	// Written down: hashes are kept by servers that run other versions.
	fixed := Token{ID: "abcdefghij", Secret: "abcdefghijklmnopqrstuvwxyz234567"}
	if got, want := fixed.Hash(), "5151debcf9a3fc79d9a821e975c08781fa502ad554d69068fc5f3c01828483b3"; got != want {
		t.Errorf("the hash is %s, want %s", got, want)
	}
	token, other := newTestToken(t), newTestToken(t)
	for name, test := range map[string]struct {
		token Token
		hash  string
		want  bool
	}{
		"own":           {token, token.Hash(), true},
		"other":         {token, other.Hash(), false},
		"other ID":      {Token{other.ID, token.Secret}, token.Hash(), false},
		"other secret":  {Token{token.ID, other.Secret}, token.Hash(), false},
		"moved":         {Token{token.ID + token.Secret[:1], token.Secret[1:]}, token.Hash(), false},
		"no hash":       {token, "", false},
		"part of it":    {token, token.Hash()[:32], false},
		"token itself":  {token, token.String(), false},
		"no token":      {Token{}, token.Hash(), false},
		"upper case":    {token, strings.ToUpper(token.Hash()), false},
		"hash and more": {token, token.Hash() + "0", false},
	} {
		if got := test.token.Matches(test.hash); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add("abcdefghij.abcdefghijklmnopqrstuvwxyz234567")
	f.Add(".")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err == nil && (token.String() != strings.TrimSpace(text) || len(token.String()) != 43) {
			t.Errorf("%q is read as %q", text, token)
		}
	})
}

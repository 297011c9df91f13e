{{/*
The alerts of files/alerts.yaml with the thresholds of alerts.rules filled in, as `rules:` of a Prometheus group.
A rule that is switched off is left out.
*/}}
{{- define "tlt-operator.alertRules" -}}
{{- $rules := list -}}
{{- range $source := .Files.Get "files/alerts.yaml" | fromYamlArray -}}
{{- $settings := index $.Values.alerts.rules $source.alert -}}
{{- if $settings.enabled -}}
{{- $texts := dict "expr" $source.expr "summary" $source.summary "description" $source.description -}}
{{- range $name, $value := $settings -}}
{{- range $part, $text := $texts -}}
{{- $_ := set $texts $part (replace (printf "${%s}" $name) (toString $value) $text) -}}
{{- end -}}
{{- end -}}
{{- $base := default "docs/runbooks" $.Values.alerts.runbookBaseUrl -}}
{{- $annotations := dict "summary" $texts.summary "description" $texts.description "runbook_url" (printf "%s/%s" $base $source.runbook) -}}
{{- $labels := merge (dict "severity" $settings.severity) $.Values.alerts.labels -}}
{{- $rules = append $rules (dict "alert" $source.alert "expr" $texts.expr "for" $settings.for "labels" $labels "annotations" $annotations) -}}
{{- end -}}
{{- end -}}
{{- dict "rules" $rules | toYaml -}}
{{- end -}}

{{/*
The same alerts as a file of Grafana's alert provisioning. An expression that yields a series is an alert in Prometheus; in
Grafana the query A is followed by the condition B, which is true for each series whatever its value.
*/}}
{{- define "tlt-operator.grafanaAlerts" -}}
{{- $rules := list -}}
{{- range $rule := (include "tlt-operator.alertRules" . | fromYaml).rules -}}
{{- $query := dict "refId" "A" "datasourceUid" $.Values.alerts.grafana.datasourceUid "relativeTimeRange" (dict "from" 600 "to" 0) -}}
{{- $_ := set $query "model" (dict "refId" "A" "expr" $rule.expr "instant" true "range" false "intervalMs" 1000 "maxDataPoints" 43200) -}}
{{- $condition := dict "refId" "B" "datasourceUid" "__expr__" "relativeTimeRange" (dict "from" 0 "to" 0) -}}
{{- $_ := set $condition "model" (dict "refId" "B" "type" "math" "expression" "is_number($A) || is_inf($A)") -}}
{{- $annotations := dict -}}
{{- range $name, $text := $rule.annotations -}}
{{- $_ := set $annotations $name (replace "$value" "$values.A.Value" $text) -}}
{{- end -}}
{{- $made := dict "uid" ($rule.alert | kebabcase) "title" $rule.alert "condition" "B" "data" (list $query $condition) -}}
{{- $_ := set $made "for" $rule.for -}}
{{- $_ := set $made "noDataState" "OK" -}}
{{- $_ := set $made "execErrState" "Error" -}}
{{- $_ := set $made "labels" $rule.labels -}}
{{- $_ := set $made "annotations" $annotations -}}
{{- $rules = append $rules $made -}}
{{- end -}}
{{- $group := dict "orgId" 1 "name" "tlt-operator" "folder" .Values.alerts.grafana.folder "interval" "1m" "rules" $rules -}}
{{- dict "apiVersion" 1 "groups" (list $group) | toYaml -}}
{{- end -}}
